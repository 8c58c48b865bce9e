"""What lies beside the weights: the plots and the model card, drawn and written from the report alone."""
