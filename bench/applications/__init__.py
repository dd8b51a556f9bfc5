"""The examples under real load tools, beside the usual way to do the same.

``python -m bench.applications http kv`` measures; each module here that has an ``APPLICATION`` is
one that can be measured. To add one, write such a module: its servers, its loads, its targets (see
``runner``). Nothing else has to know of it.
"""
