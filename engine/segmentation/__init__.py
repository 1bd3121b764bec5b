"""From a volume and prompts to segments: one volume, a study with its files, many studies, many machines."""
