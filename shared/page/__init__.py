"""A page in a browser for whoever works beside the machine: who may in, what is asked and answered, in what words."""
