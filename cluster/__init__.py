"""The Ray Serve application and everything an operator touches. The only package that imports Ray."""
