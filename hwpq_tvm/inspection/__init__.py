"""What artefacts hold, side by side: as facts, pictures and one HTML page."""
