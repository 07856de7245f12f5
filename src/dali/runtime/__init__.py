"""One MoE layer's step: from the routed tokens to the summed expert outputs."""
