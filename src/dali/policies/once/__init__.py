"""What is decided once, when a model is loaded on an accelerator, by modelled time."""
