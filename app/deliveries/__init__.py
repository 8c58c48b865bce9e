"""The outbox: what others are to be told, written in the transaction in which it happens, and sent afterwards."""
