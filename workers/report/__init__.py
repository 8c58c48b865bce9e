"""Draw the plots and write the model card that accompany the weights, from the report alone."""
