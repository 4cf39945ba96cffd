// What gRPC for Node.js sees of a server: one scenario, told in JSON.
//
// `node client.mjs HOST:PORT SCENARIO [CA_FILE]`; a bearer token comes from TOKEN. Has nothing but
// this project's .proto files and judges nothing; the tests beside it do.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const PROMPT = "def fibonacci(n):";
const GREEDY = { temperature: 0, max_tokens: 16 };
const LONG = { max_tokens: 900, ignore_eos: true };

const [target, scenario, caFile] = process.argv.slice(2);
const loaded = grpc.loadPackageDefinition(
  protoLoader.loadSync(["protos/inference.proto", "protos/open_inference.proto"], {
    includeDirs: [ROOT],
    keepCase: true,
    longs: String, // a seed has 64 bits, a JavaScript number 53
    enums: String,
    defaults: true,
    oneofs: true,
  }),
);

const credentials = caFile
  ? grpc.credentials.createSsl(readFileSync(caFile))
  : grpc.credentials.createInsecure();
const client = new loaded.inference_unlimited.v1.Inference(target, credentials);
const openInference = new loaded.inference.GRPCInferenceService(target, credentials);

function metadata() {
  const sent = new grpc.Metadata();
  if (process.env.TOKEN) sent.set("authorization", `Bearer ${process.env.TOKEN}`);
  return sent;
}

const failure = (error) => ({ status: grpc.status[error.code], message: error.details });

/** A unary call's answer, or its failure. */
function call(stub, method, request, options = {}) {
  return new Promise((resolve) => {
    stub[method](request, metadata(), options, (error, answer) =>
      resolve(error ? failure(error) : answer),
    );
  });
}

/** Everything that a streamed call tells: messages, how often it ended, and with which status. */
function stream(method, request, { options = {}, onMessage = () => {} } = {}) {
  return new Promise((resolve) => {
    const seen = { text: "", messages: 0, finishes: [], statuses: [] };
    const streamed = client[method](request, metadata(), options);
    streamed.on("data", (message) => {
      seen.messages += 1;
      seen.text += message.text;
      if (message.finish) seen.finishes.push(message.finish);
      onMessage(streamed, message);
    });
    streamed.on("error", () => {}); // the status event tells the same
    streamed.on("status", (status) => {
      seen.statuses.push(failure(status));
      setImmediate(() => resolve(seen));
    });
  });
}

const SCENARIOS = {
  async variants() {
    const { variants } = await call(client, "ListVariants", {});
    return variants.map(({ name, state, is_default }) => ({ name, state, is_default }));
  },

  /** One prompt to every variant, streamed and at once. */
  async generate() {
    const found = {};
    for (const variant of ["baseline", "int8", "int4"]) {
      const request = { variant, text: PROMPT, sampling: GREEDY };
      found[variant] = {
        streamed: await stream("Generate", request),
        whole: await call(client, "Complete", request),
      };
    }
    return found;
  },

  /** Fields that JavaScript could spoil: 64 bits, a map with numbers as keys, optional zeros. */
  async fields() {
    const sampling = { ...GREEDY, seed: "18446744073709551615", logprobs: 0 };
    const plain = await call(client, "Complete", { text: PROMPT, sampling });
    const first = plain.token_ids[0];
    const biased = await call(client, "Complete", {
      text: PROMPT,
      sampling: { ...sampling, logit_bias: { [first]: -100 } },
    });
    return { plain, biased };
  },

  async chat() {
    const messages = [{ role: "user", content: "add two numbers" }];
    return {
      streamed: await stream("Chat", { messages, sampling: GREEDY }),
      whole: await call(client, "CompleteChat", { messages, sampling: GREEDY }),
    };
  },

  async structured() {
    const schema = { type: "object", properties: { n: { type: "integer" } }, required: ["n"] };
    const request = {
      text: PROMPT,
      sampling: { ...GREEDY, max_tokens: 64 },
      response_format: { json_schema: JSON.stringify({ ...schema, additionalProperties: false }) },
    };
    return await call(client, "Complete", request);
  },

  /** Twelve streams of three variants over one connection. */
  async concurrent() {
    const variants = ["baseline", "int8", "int4"];
    return await Promise.all(
      Array.from({ length: 12 }, (_, index) =>
        stream("Generate", { variant: variants[index % 3], text: PROMPT, sampling: GREEDY }),
      ),
    );
  },

  async errors() {
    return {
      variant: await call(client, "Complete", { variant: "nobody", text: PROMPT }),
      sampling: await call(client, "Complete", { text: PROMPT, sampling: { top_p: 7 } }),
      streamed: (await stream("Generate", { text: PROMPT, sampling: { top_p: 7 } })).statuses,
      deadline: (
        await stream(
          "Generate",
          { text: PROMPT, sampling: LONG },
          { options: { deadline: Date.now() + 300 } },
        )
      ).statuses,
    };
  },

  async cancel() {
    return await stream(
      "Generate",
      { variant: "baseline", text: PROMPT, sampling: LONG },
      { onMessage: (streamed) => streamed.cancel() },
    );
  },

  async open_inference() {
    const bytes = (name, text) => ({
      name,
      datatype: "BYTES",
      shape: [1],
      contents: { bytes_contents: [Buffer.from(text)] },
    });
    return await new Promise((resolve) => {
      openInference.ModelInfer(
        {
          model_name: "int4",
          id: "from JavaScript",
          inputs: [bytes("text_input", PROMPT), bytes("sampling_parameters", JSON.stringify(GREEDY))],
        },
        metadata(),
        (error, answer) => {
          if (error) return resolve(failure(error));
          const raw = answer.raw_output_contents[0];
          const text = answer.outputs[0].contents?.bytes_contents?.[0] ?? raw.subarray(4);
          return resolve({ id: answer.id, output: answer.outputs[0].name, text: text.toString() });
        },
      );
    });
  },
};

console.log(JSON.stringify(await SCENARIOS[scenario]()));
client.close();
openInference.close();
