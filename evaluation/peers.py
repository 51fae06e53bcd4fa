"""What the peers published, on other data: other objects, surveys and labels. Never to be compared row by row."""

PEERS = (
    ("AION-1 Base, photometry", "redshift", 0.75),
    ("AION-1 Base, photometry and image", "redshift", 0.93),
    ("AION-1 Base, photometry, image and spectrum", "redshift", 1.00),
    ("AION-1 Base, photometry", "stellar mass", 0.72),
    ("AION-1 Base, photometry and image", "stellar mass", 0.89),
    ("AION-1 Base, photometry, image and spectrum", "stellar mass", 0.96),
    ("AstroCLIP, image, k-NN", "redshift", 0.79),
    ("supervised ResNet-18, image (as AstroCLIP reports it)", "redshift", 0.77),
    ("photometry MLP (as AstroCLIP reports it)", "redshift", 0.68),
    ("AstroCLIP, spectrum, k-NN", "redshift", 0.99),
    ("supervised conv and attention, spectrum (as AstroCLIP reports it)", "redshift", 0.99),
)
"""Method and input, label, R2. AION-1: Parker et al. 2025, arXiv 2510.17960. AstroCLIP: Parker et al. 2024,
arXiv 2310.03024."""
