"""An index over HTTP, and the page that people look at it with: what ``fwd2bot serve`` starts.

::

    app        the endpoints, and errors as sentences        settings   what a server may do, and its limits
    wire       what goes over the wire, both ways            guards     hosts, tokens, sizes: before a request is read
    served     the index as it is now, its model behind it   work       threads that stop when the client hangs up
    batching   one thread for the model, fed by all clients  pictures   the bytes of pictures of the index
    metrics    what Prometheus asks for                      page/      HTML, CSS and JavaScript, as they are
"""
