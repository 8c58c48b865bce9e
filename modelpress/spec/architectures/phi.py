"""Phi and Phi-3."""

from modelpress.spec.architectures.architecture import Attention, Mlp
from modelpress.spec.architectures.llama import STACKED_MLP, UNDIVIDED_ATTENTION, llama_like

PHI = llama_like("phi", mlp=Mlp(("mlp.fc1",), "mlp.fc2"), attention=Attention("self_attn.dense"))
PHI3 = llama_like("phi3", mlp=STACKED_MLP, attention=UNDIVIDED_ATTENTION)  # one matrix holds queries, keys and values
