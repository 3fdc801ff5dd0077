"""The loop: one state, one jitted step, evaluation, checkpoints. It knows no method, model or data set."""
