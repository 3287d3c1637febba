"""What was made, how, and how good it is: for machines (JSON), for people (HTML, model card)."""
