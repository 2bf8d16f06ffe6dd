"""The comparison suite: all methods of edge_pslora.compare on real streams, run by run, to be continued."""
