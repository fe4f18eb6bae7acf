"""Query denoising (Sec. 4): the noise, the layout of the queries with its attention mask, and the queries themselves."""
