"""What an architecture that nobody listed is like, found by structure and by trial.

    architecture = infer(model_type)        # of a tiny random model of this type; raises NotUnderstood with the reason
    check_inferred(model)                   # the same trials on the first block of a real model

Nothing is guessed from a module's name. What cannot be shown on the model itself is not said of it, and a model of
which too little can be shown is refused.
"""
