"""What the evidence is made of: answers, scores, diagnostics, costs, and the sentences about them."""
