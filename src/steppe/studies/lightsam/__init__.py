"""How much LightSAM, SAM, AdaSAM and their bases depend on learning rate and radius (Cheng et al., 2025)."""
