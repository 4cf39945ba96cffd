"""Chat templates: the same text as transformers renders, bounded, and whose fault a failure is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from artifacts.errors import CorruptArtifactError
from server.chat_template import ChatTemplate, TemplateRefusalError, load_template

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
DEMO = Path(__file__).parents[2] / "demo" / "model"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Tells the weather; "now" & <later>',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "unit": {"type": ["string", "integer"]},
            },
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ōsaka"}}}


def _said(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [_said("user", "Hello")],
    "system": [_said("system", "Be brief.\n"), _said("user", " Hi <b>&amp;</b> 'you' \"me\" ")],
    "turns": [
        _said("user", "1 + 1?"),
        _said("assistant", "<think>\nadding\n</think>\n\n2  "),
        _said("user", "日本語 🎉\ttabs\nlines\n\n"),
    ],
    "tool": [
        _said("user", "Weather?"),
        _said("assistant", "", tool_calls=[CALL]),
        _said("tool", '{"sky": "clear"}', tool_call_id="1"),
        _said("tool", "windy"),
    ],
    "odd": [_said("assistant", "first"), _said("assistant", "second")],
    "none": [_said("user", "x"), _said("assistant", None, tool_calls=[CALL])],
}


def _theirs(source: str, messages: list[dict[str, Any]], **more: Any) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=source, **SPECIAL, **more
    )
    return str(rendered[0])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
def test_renders_as_transformers(path: Path, name: str, tools: list[Any] | None) -> None:
    """Character by character; what one refuses the other refuses too."""
    source = path.read_text(encoding="utf-8")
    messages = CONVERSATIONS[name]
    template = ChatTemplate(source, SPECIAL)
    try:
        expected = _theirs(source, messages, tools=tools, add_generation_prompt=True)
    except Exception:  # noqa: BLE001 - jinja2 and the templates raise what they like
        with pytest.raises(TemplateRefusalError):
            template.render(messages, tools=tools)
    else:
        assert template.render(messages, tools=tools) == expected


def test_most_conversations_render() -> None:
    """The comparison above is not one of refusals."""
    rendered = 0
    for path in TEMPLATES:
        template = ChatTemplate(path.read_text(encoding="utf-8"), SPECIAL)
        for messages in CONVERSATIONS.values():
            try:
                rendered += bool(template.render(messages))
            except TemplateRefusalError:
                continue
    assert rendered > 0.6 * len(TEMPLATES) * len(CONVERSATIONS)


def test_arguments_reach_the_template() -> None:
    """As ``enable_thinking`` does."""
    source = next(path for path in TEMPLATES if path.stem == "thinking").read_text("utf-8")
    arguments = {"enable_thinking": False}
    messages = CONVERSATIONS["one"]
    text = ChatTemplate(source, SPECIAL).render(messages, arguments=arguments)
    assert text == _theirs(source, messages, tools=None, add_generation_prompt=True, **arguments)
    assert "<think>" in text


def test_continuing_ends_behind_the_last_words() -> None:
    """As transformers' own ``continue_final_message``."""
    source = next(path for path in TEMPLATES if path.stem == "chatml").read_text("utf-8")
    messages = [_said("user", "Count"), _said("assistant", "one, two ")]
    text = ChatTemplate(source, SPECIAL).render(messages, continues=True)
    assert text.endswith("<|im_start|>assistant\none, two")
    expected = _theirs(source, messages, continue_final_message=True)
    assert text.rstrip() == expected.rstrip()


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("a\n{{ raise_exception('no such role') }}", None, "no such role"),
        ("a\n{{ 1 / 0 }}", 2, "1 / 0"),
        ("a\n\n{{ messages.x.y }}", 3, "undefined"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            1,
            "",
        ),
    ],
)
def test_failures_name_the_line(source: str, line: int | None, said: str) -> None:
    """What a template raises, gets wrong or takes too long for."""
    with pytest.raises(TemplateRefusalError) as caught:
        ChatTemplate(source).render(CONVERSATIONS["one"])
    assert caught.value.line == line
    assert said in str(caught.value)


@pytest.mark.parametrize("source", ["a\n{% if x %}", "a\n{{ 1 + }}"])
def test_what_is_no_template_says_where(source: str) -> None:
    """When it is loaded, not when it is first used."""
    with pytest.raises(TemplateRefusalError) as caught:
        ChatTemplate(source)
    assert caught.value.line == 2


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ (messages|first).__class__.__base__.__subclasses__() }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(escape: str) -> None:
    """Known ways out of template engines give nothing or an error."""
    try:
        text = ChatTemplate(escape).render(CONVERSATIONS["one"])
    except TemplateRefusalError:
        return
    assert text.strip() in ("", "undefined", "none")


def test_messages_are_not_changed() -> None:
    """A template works on what it is given and leaves it as it was."""
    source = "{% set _ = messages.append('x') %}{% set _ = messages[0].update({'a': 1}) %}ok"
    messages = [_said("user", "Hello")]
    with contextlib.suppress(TemplateRefusalError):
        ChatTemplate(source).render(messages)
    assert messages == [_said("user", "Hello")]


def test_the_demo_models_template() -> None:
    """Loaded from its folder."""
    template = load_template(DEMO / "chat_template.jinja", DEMO / "tokenizer_config.json")
    assert template is not None
    text = template.render([_said("user", "Hi")])
    assert text == "<|endoftext|><|user|>Hi<|end|><|assistant|>"


def test_templates_in_a_tokenizers_config(tmp_path: Path) -> None:
    """One text, a list of named ones, tokens with properties, or none at all."""
    config = tmp_path / "tokenizer_config.json"

    def load(content: Any) -> ChatTemplate | None:
        config.write_text(json.dumps(content), encoding="utf-8")
        return load_template(None, config)

    messages = [_said("user", "Hi")]
    one = load({"chat_template": "{{ bos_token }}one", "bos_token": {"content": "<s>"}})
    assert one is not None
    assert one.render(messages) == "<s>one"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    several = load({"chat_template": named})
    assert several is not None
    assert several.render(messages) == "yes"
    assert load({}) is None
    assert load({"chat_template": [{"name": "other", "template": "x"}]}) is None
    assert load_template(None, None) is None
    config.write_text("[", encoding="utf-8")
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        load_template(None, config)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
    ids=["loops", "macro", "recursion"],
)
def test_a_template_that_goes_on_for_ever_runs_out_of_fuel(source: str) -> None:
    """Its conversation is refused; the template still renders others."""
    template = ChatTemplate("{% if messages | length > 1 %}" + source + "{% endif %}done")
    one = {"role": "user", "content": "x"}
    with pytest.raises(TemplateRefusalError, match=r"fuel|recursion|depth|stack"):
        template.render([one, one])
    assert template.render([one]) == "done"
