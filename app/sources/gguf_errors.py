"""What is wrong with a GGUF file. Each message is a sentence."""


class MalformedGguf(ValueError):
    """The file is not what its format promises."""


class UnsupportedGguf(ValueError):
    """A sound file of an architecture, or with a tensor or a setting, that is not read."""
