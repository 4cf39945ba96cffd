"""From a Hugging Face folder to a verified ONNX graph; see ``export``."""

from optimizers.export.chain import Exported, export

__all__ = ["Exported", "export"]
