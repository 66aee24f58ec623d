"""What the methods keep of SAM's gain, at which price: five tasks, tuned with equal budgets, against other packages."""
