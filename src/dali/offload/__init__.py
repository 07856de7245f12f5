"""Putting a loaded model's experts under the runtime: device, slots, policies, predictors."""
