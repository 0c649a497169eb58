"""One file per data set: a function of root and options that gives a Dataset."""
