"""What a search may look at, who proposes and who stops, and the study in which all of it is written down."""
