"""What is wrong with a GGUF file. Each message is a sentence."""

from modelpress.spec.errors import MalformedModel, UnsupportedArchitecture


class MalformedGguf(MalformedModel):
    """The file is not what its format promises."""

    code = "invalid_model"


class UnsupportedGguf(UnsupportedArchitecture):
    """A sound file of an architecture, or with a tensor or a setting, that is not read."""

    code = "unsupported_architecture"
