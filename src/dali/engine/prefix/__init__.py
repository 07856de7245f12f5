"""What is kept of finished and running sequences, so that prompts which begin alike are not read twice."""
