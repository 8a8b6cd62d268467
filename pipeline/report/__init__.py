"""From finished runs to tables and pictures. Nothing here trains."""
