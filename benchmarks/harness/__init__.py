"""The benchmark harness: which servers, which work, how it is measured, how it is told.

Modules, each importing only from those above it:

    workloads   the work, as data
    servers     the servers, as data
    targets     what is asked of our servers, as data
    compat_suite  all three again: compat beside the standard library
    datagram_suite  all three: our datagram server beside its peers
    suites      what can be run as a whole
    machine     what the figures were measured on
    building    make the native parts
    processes   start, pin, watch and stop a server
    measuring   one cell: one server, one work, one round
    results     samples of all rounds brought together
    tables      the columns, and how numbers are written
    report      Markdown for people, JSON for programs
    drawing     bars and lines as SVG; needs matplotlib
    charts      which figures are drawn; needs matplotlib
"""
