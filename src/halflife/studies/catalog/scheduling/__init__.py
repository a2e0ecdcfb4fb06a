"""Studies of "Understanding and Scheduling Weight Decay" (arXiv 2011.11152), and of what decay does to norms and angles."""
