"""Study: averaged weights of a supervised run, and two remarks that every lecture on them makes."""
