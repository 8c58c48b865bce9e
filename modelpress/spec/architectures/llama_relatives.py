"""Models whose modules have the names of Llama's, or nearly so."""

from modelpress.spec.architectures.architecture import Attention, HeadMatrices, Mlp
from modelpress.spec.architectures.llama import (
    PLAIN_MLP,
    UNDIVIDED_ATTENTION,
    llama_like,
)

ARCEE = llama_like("arcee", mlp=PLAIN_MLP, attention=Attention(heads=HeadMatrices(divides_width=True)))
APERTUS = llama_like("apertus", mlp=PLAIN_MLP)
CWM = llama_like("cwm", attention=Attention(heads=HeadMatrices(divides_width=True)))
ERNIE4_5 = llama_like("ernie4_5", tied=True)
HUNYUAN_V1_DENSE = llama_like("hunyuan_v1_dense")
JAIS2 = llama_like("jais2", mlp=PLAIN_MLP, attention=Attention(heads=HeadMatrices(divides_width=True)))
NEMOTRON = llama_like("nemotron", mlp=PLAIN_MLP)
SEED_OSS = llama_like("seed_oss")
SMOLLM3 = llama_like("smollm3", tied=True)
STABLELM = llama_like("stablelm", attention=UNDIVIDED_ATTENTION)
STARCODER2 = llama_like("starcoder2", tied=True, mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"))
