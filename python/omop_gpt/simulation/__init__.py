"""What `simulate` is made of: tables of medical knowledge, and code that reads them.

- conditions.csv: new cases per 1,000 person-years by age, sex, season and other
  conditions (`boosts`, `needs`), and where people go with them; and deaths.
- follow_ups.csv: later visits and readmissions that a condition brings.
- care.csv: what may be done at a visit for a condition, for whom, when and how often.
- measurements.csv, shifts.csv: typical values by age, their spread, and how conditions
  move them, before and after 270 days.
- concepts.csv, concept_ancestor.csv: every OMOP concept in use, and what it is part of.
- columns.csv: the columns of OMOP CDM 5.4.
"""

SOURCE_NAME = "Simulated patients"  # what its table cdm_source says
