"""The stages of the story, in order; each fills its part of the report and its evidence."""
