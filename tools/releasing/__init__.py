"""How a release is made: version and date are set, checked, and everything is built twice.

heading   version and date, as the changelog's headings have them
stating   where else in the source the version stands
checks    what a commit must be, to be released
building  all packages, twice, which must be equal
command   the command line
failure   what went wrong, for whoever makes the release
"""
