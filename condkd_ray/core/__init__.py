"""Basic values and file formats that every other folder uses; imports no other folder of the package."""
