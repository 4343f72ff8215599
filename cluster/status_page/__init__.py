"""The live page at `/`: one file of HTML, and what it polls."""
