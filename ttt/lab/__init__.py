"""Tables of experiments: every row of a table is trained, decoded and scored under every seed, then compared.

`table_file`: the YAML that describes a table; `plan`: its cells; `cells`: what one cell is and whether it is up to date;
`runner`: running cells, several at a time; `trainings`: reusing the trainings of other tables; `statistics`: intervals and
tests; `results`: the printed table; `run_table` and `repro`: the two verbs from start to end.
"""
