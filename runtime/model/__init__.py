"""The contract, the bundle that holds a model, and the way from a name to an open one."""
