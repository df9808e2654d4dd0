"""What a completion is compared by: reconstruction, adversarial, and the objective that weighs them."""
