"""Command R and its successors."""

from modelpress.spec.architectures.llama import UNDIVIDED_ATTENTION, llama_like

COHERE = llama_like(
    "cohere",
    tied=True,
    attention=UNDIVIDED_ATTENTION,  # the norms of queries and keys may have a row for each head
    whole=("self_attn.q_norm", "self_attn.k_norm"),
)
COHERE2 = llama_like("cohere2", tied=True)
