"""Options, their kinds of values, and files of variables: how words of a command line become fields of a request."""
