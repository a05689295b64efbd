"""DSE measured inside other people's trainers: ``lightning`` and ``hugging_face``, each an optional extra."""
