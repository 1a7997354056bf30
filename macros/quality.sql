{#-
    The checks of OHDSI's Data Quality Dashboard that seed quality_checks lists, on the
    synthetic CDM's tables, or on the source's (source_name 'source_cdm'): one query per
    table, with all of its checks. DuckDB only. See docs/synthetic-cdm.md.
-#}
{% macro quality_counts(source_name=none) -%}
    {%- set checks = seed_rows(ref('quality_checks')) if execute else [] %}
    {%- set parts = [] %}
    {%- for table in checked_tables() %}
        {#- asked for while dbt parses, too: that tells it the order of the run -#}
        {%- set relation = source(source_name, table) if source_name
            else ref(cdm_model(table)) %}
        {%- set counted = counts_of_table(table, relation, checks, source_name)
            if execute %}
        {%- if counted %}
            {%- do parts.append(counted) %}
        {%- endif %}
    {%- endfor %}
    {%- for part in parts %}
    {{ part }}
    union all
    {%- endfor %}
    {{ concept_checks() }}
    union all
    {{ unit_checks() }}
    union all
    {{ gender_checks() }}
{%- endmacro %}

{#- The tables whose rows are looked at; the rest of the vocabulary is the source's. -#}
{% macro checked_tables() %}
    {{- return([
        'person', 'observation_period', 'visit_occurrence', 'visit_detail',
        'condition_occurrence', 'drug_exposure', 'procedure_occurrence', 'measurement',
        'observation', 'device_exposure', 'death', 'condition_era', 'drug_era',
        'dose_era', 'cdm_source', 'concept', 'vocabulary', 'domain', 'concept_class',
        'concept_relationship', 'relationship', 'concept_synonym', 'concept_ancestor',
        'drug_strength',
    ]) }}
{% endmacro %}

{#- The rows of a seed as dictionaries; none while it is not loaded. -#}
{% macro seed_rows(relation) %}
    {%- set rows = [] %}
    {%- if load_relation(relation) %}
        {%- set found = run_query('select * from ' ~ relation) %}
        {%- for row in found.rows %}
            {%- do rows.append(dict(zip(found.column_names, row.values()))) %}
        {%- endfor %}
    {%- endif %}
    {{- return(rows) }}
{% endmacro %}

{#- One query: a row per check of the table, none where it has no check. -#}
{% macro counts_of_table(table, relation, checks, source_name) %}
    {%- set columns = {} %}
    {%- for column in adapter.get_columns_in_relation(relation) %}
        {%- do columns.update({column.name: column.dtype | upper}) %}
    {%- endfor %}
    {%- set counted = [] %}
    {%- for check in checks if check.cdm_table == table %}
        {%- set counts = counts_of_check(check, columns, source_name) %}
        {%- if counts %}
            {%- do counted.append(
                "{'check_name': '" ~ check.check_name ~ "', 'cdm_table': '" ~ table
                ~ "', 'cdm_field': '" ~ (check.cdm_field or '') ~ "', 'concept_id': 0, "
                ~ "'rows_violated': " ~ counts[0] ~ ", 'denominator': " ~ counts[1] ~ '}'
            ) %}
        {%- endif %}
    {%- endfor %}
    {%- set persons = ' left join persons on checked.person_id = persons.person_id'
        if 'person_id' in columns else '' %}
    {{- return(
        'select unnest([\n        ' ~ counted | join(',\n        ')
        ~ '\n    ], recursive := true) from ' ~ relation ~ ' as checked'
        ~ persons
        if counted
    ) }}
{% endmacro %}

{#- Rows violated and rows looked at, as two aggregates; none: counted elsewhere. -#}
{% macro counts_of_check(check, columns, source_name) %}
    {%- set name, field = check.check_name, 'checked.' ~ check.cdm_field %}
    {%- set other = 'checked.' ~ check.other_field %}
    {%- set rows = 'count(*)' %}
    {%- set given = 'count(' ~ field ~ ')' %}

    {#- of the source, encode's cast_ledger tells what is no column and no number -#}
    {%- if name == 'cdmField' %}
        {%- set lacks = '0' if check.cdm_field in columns else '1' %}
        {%- set lacks = '0 * count(*) + ' ~ lacks %}
        {{- return(none if source_name else [lacks, '0 * count(*) + 1']) }}
    {%- elif name == 'cdmDatatype' %}
        {%- set is_whole = columns.get(check.cdm_field) in ('BIGINT', 'INTEGER') %}
        {{- return(none if source_name else ['0 * count(*)' if is_whole else given, given]) }}
    {%- elif check.cdm_field and check.cdm_field not in columns %}
        {{- return(none) }}

    {%- elif name == 'measurePersonCompleteness' %}
        {%- set persons = '(select count(*) from persons)' %}
        {{- return([
            'any_value(' ~ persons ~ ') - count(distinct persons.person_id)',
            'any_value(' ~ persons ~ ')'
        ]) }}
    {%- elif name == 'measureObservationPeriodOverlap' %}
        {#- a period that begins no later than the day after the one before ends -#}
        {{- return([
            '(select count(distinct person_id) from overlapping_periods)',
            'count(distinct checked.person_id)'
        ]) }}
    {%- elif name == 'measureConditionEraCompleteness' %}
        {{- return([
            '(select count(*) from persons_with_conditions'
            ~ ' where person_id not in (select person_id from persons_with_eras))',
            '(select count(*) from persons_with_conditions)'
        ]) }}

    {%- elif name == 'isRequired' or name == 'measureValueCompleteness' %}
        {{- return([rows ~ ' - ' ~ given, rows]) }}
    {%- elif name == 'isPrimaryKey' %}
        {{- return([given ~ ' - count(distinct ' ~ field ~ ')', rows]) }}
    {%- elif name == 'isForeignKey' and check.other_table != 'concept' %}
        {%- if check.cdm_field == 'person_id' %}
            {%- set found = 'persons.person_id is not null' %}
        {%- elif check.other_table == 'visit_occurrence' %}
            {{- return([
                of_visits(check, 'named_count - found_count'),
                of_visits(check, 'named_count')
            ]) }}
        {%- else %}
            {%- set relation = source(source_name, check.other_table) if source_name
                else ref(cdm_model(check.other_table)) %}
            {%- set found = field ~ ' in (select ' ~ check.other_field ~ ' from '
                ~ relation ~ ')' %}
        {%- endif %}
        {{- return([
            given ~ ' - count(case when ' ~ found ~ ' then ' ~ field ~ ' end)', given
        ]) }}

    {%- elif name == 'standardConceptRecordCompleteness'
        or name == 'sourceConceptRecordCompleteness' %}
        {#- a unit is wanted where there is a number -#}
        {%- set wanted = 'checked.value_as_number is not null'
            if check.cdm_field == 'unit_concept_id' and 'value_as_number' in columns
            else field ~ ' is not null' %}
        {{- return([
            violations(field ~ ' = 0 and ' ~ wanted), violations(wanted)
        ]) }}
    {%- elif name == 'sourceValueCompleteness' %}
        {{- return([
            'count(distinct case when checked.' ~ check.parameter ~ ' = 0 then '
            ~ field ~ ' end)',
            'count(distinct ' ~ field ~ ')'
        ]) }}

    {%- elif name in ('plausibleValueLow', 'plausibleValueHigh') %}
        {%- set sign = ' < ' if name == 'plausibleValueLow' else ' > ' %}
        {{- return([
            violations(field ~ sign ~ bound(check.parameter, columns[check.cdm_field])),
            given
        ]) }}
    {%- elif name == 'plausibleTemporalAfter' %}
        {%- set first = 'persons.middle_of_birth_year' if check.other_table == 'person'
            else other %}
        {{- return([
            violations(day(field) ~ ' < ' ~ day(first)),
            violations(field ~ ' is not null and ' ~ first ~ ' is not null')
        ]) }}
    {%- elif name == 'plausibleStartBeforeEnd' %}
        {{- return([
            violations(day(field) ~ ' > ' ~ day(other)),
            violations(field ~ ' is not null and ' ~ other ~ ' is not null')
        ]) }}
    {%- elif name == 'plausibleAfterBirth' %}
        {{- return([violations(day(field) ~ ' < persons.birth_date'), given]) }}
    {%- elif name in ('plausibleDuringLife', 'plausibleBeforeDeath') %}
        {{- return([
            violations(day(field) ~ ' > persons.death_date + 60'),
            violations(field ~ ' is not null and persons.death_date is not null')
        ]) }}
    {%- elif name == 'withinVisitDates' %}
        {{- return([of_visits(check, 'outside_count'), of_visits(check, 'dated_count')]) }}
    {%- endif %}
    {{- return(none) }}
{% endmacro %}

{#- What visits_named counts of a table, or of a date in it. -#}
{% macro of_visits(check, counted) %}
    {%- set of_date = " and cdm_field = '" ~ check.cdm_field ~ "'"
        if check.check_name == 'withinVisitDates' else '' %}
    {{- return(
        'coalesce(any_value((select max(' ~ counted ~ ') from visits_named where'
        ~ " cdm_table = '" ~ check.cdm_table ~ "'" ~ of_date ~ ')), 0)'
    ) }}
{% endmacro %}

{% macro violations(condition) %}
    {{- return('count(case when ' ~ condition ~ ' then 1 end)') }}
{% endmacro %}

{% macro day(field) %}
    {{- return('cast(' ~ field ~ ' as date)') }}
{% endmacro %}

{#- A bound as the control files write it; "today" is the day of the release. -#}
{% macro bound(text, data_type) %}
    {%- if text.startswith('YEAR(') %}
        {{- return('(select extract(year from cdm_release_date) + 1 from released)') }}
    {%- elif text.startswith('DATEADD(') %}
        {{- return('(select cdm_release_date + 1 from released)') }}
    {%- elif text.startswith("'") %}
        {{- return(
            "cast('" ~ text[1:5] ~ '-' ~ text[5:7] ~ '-' ~ text[7:9] ~ "' as date)"
        ) }}
    {%- endif %}
    {{- return(text) }}
{% endmacro %}

{#-
    Tables that name visits: each date that must be within them, none where none must,
    and the field that names them.
-#}
{% macro visits_are_named_by() %}
    {%- set checks = seed_rows(ref('quality_checks')) if execute else [] %}
    {%- set dates = {} %}
    {%- for check in checks if check.check_name == 'withinVisitDates' %}
        {%- do dates.setdefault((check.cdm_table, 'visit_occurrence_id'), []).append(
            check.cdm_field
        ) %}
    {%- endfor %}
    {%- set found = [] %}
    {%- for check in checks
        if check.check_name == 'isForeignKey' and check.other_table == 'visit_occurrence' %}
        {%- for date in dates.get((check.cdm_table, check.cdm_field), [none]) %}
            {%- do found.append((check.cdm_table, date, check.cdm_field)) %}
        {%- endfor %}
    {%- endfor %}
    {{- return(found) }}
{% endmacro %}

{#- What the checks of several tables look up, as CTEs. -#}
{% macro quality_lookups(source_name=none) -%}
    {%- set tables = {} %}
    {%- for table in checked_tables() %}
        {%- do tables.update(
            {table: source(source_name, table) if source_name else ref(cdm_model(table))}
        ) %}
    {%- endfor %}
    deaths as (

        select person_id, min(death_date) as death_date
        from {{ tables.death }}
        group by 1

    ),

    persons as (

        select
            persons.person_id,
            any_value(persons.gender_concept_id) as gender_concept_id,
            any_value(deaths.death_date) as death_date,
            any_value(coalesce(
                cast(persons.birth_datetime as date),
                try_cast(
                    lpad(cast(persons.year_of_birth as varchar), 4, '0') || '-'
                    || coalesce(persons.month_of_birth, 1) || '-'
                    || coalesce(persons.day_of_birth, 1) as date
                )
            )) as birth_date,
            any_value(coalesce(
                cast(persons.birth_datetime as date),
                try_cast(
                    lpad(cast(persons.year_of_birth as varchar), 4, '0') || '-06-01'
                    as date
                )
            )) as middle_of_birth_year
        from {{ tables.person }} as persons
        left join deaths on persons.person_id = deaths.person_id
        group by 1

    ),

    visits as (

        select
            visit_occurrence_id,
            min(visit_start_date) as visit_start_date,
            max(visit_end_date) as visit_end_date
        from {{ tables.visit_occurrence }}
        group by 1

    ),

    -- Of all tables at once: each with a join of its own would have the visits in memory
    -- as often.
    visits_named as (

        select
            named.cdm_table,
            named.cdm_field,
            count(named.visit_occurrence_id) as named_count,
            count(visits.visit_occurrence_id) as found_count,
            {{ violations(
                'visits.visit_occurrence_id is not null and named.day is not null'
            ) }} as dated_count,
            {{ violations(
                'named.day < visits.visit_start_date - 7'
                ~ ' or named.day > visits.visit_end_date + 7'
            ) }} as outside_count
        from (
            -- while the seed is not loaded, no more than this
            select
                cast(null as varchar) as cdm_table,
                cast(null as varchar) as cdm_field,
                cast(null as bigint) as visit_occurrence_id,
                cast(null as date) as day
            where false
            {%- for table, field, named_as in visits_are_named_by() %}
            union all
            select
                '{{ table }}' as cdm_table,
                '{{ field }}' as cdm_field,
                {{ named_as }} as visit_occurrence_id,
                {{ day(field or 'null') }} as day
            from {{ tables[table] }}
            {%- endfor %}
        ) as named
        left join visits on named.visit_occurrence_id = visits.visit_occurrence_id
        group by 1, 2

    ),

    released as (

        select max(cdm_release_date) as cdm_release_date
        from {{ ref('cdm_source') }}

    ),

    overlapping_periods as (

        select person_id
        from {{ tables.observation_period }}
        qualify
            observation_period_start_date - 1
            <= max(observation_period_end_date) over (
                partition by person_id
                order by observation_period_start_date, observation_period_end_date
                rows between unbounded preceding and 1 preceding
            )

    ),

    persons_with_conditions as (

        select distinct person_id
        from {{ tables.condition_occurrence }}
        where condition_concept_id <> 0

    ),

    persons_with_eras as (

        select distinct person_id from {{ tables.condition_era }}

    ),

    checks as (

        select * from {{ ref('quality_checks') }}

    ),

    concepts as (

        select * from {{ tables.concept }}

    ),

    concept_counts as (

        {{ concept_counts([
            'person', 'observation_period', 'visit_occurrence', 'visit_detail',
            'condition_occurrence', 'drug_exposure', 'procedure_occurrence',
            'measurement', 'observation', 'device_exposure', 'death', 'condition_era',
            'drug_era', 'dose_era', 'cdm_source',
        ], source_name) }}

    ),

    units as (

        select
            measurement_concept_id as concept_id,
            coalesce(unit_concept_id, -1) as unit_concept_id,
            count(*) as row_count
        from {{ tables.measurement }}
        where value_as_number is not null
        group by 1, 2

    ),

    genders as (

        {% for table, column in [
            ('condition_occurrence', 'condition_concept_id'),
            ('procedure_occurrence', 'procedure_concept_id'),
        ] -%}
        select
            '{{ table }}' as cdm_table,
            checked.{{ column }} as concept_id,
            persons.gender_concept_id,
            count(*) as row_count
        from {{ tables[table] }} as checked
        inner join persons on checked.person_id = persons.person_id
        group by 2, 3
        {{ 'union all ' if not loop.last }}
        {%- endfor %}

    ),

    gender_rules as (

        select distinct
            rules.concept_id as rule_concept_id,
            rules.gender_concept_id,
            rules.cdm_table,
            rules.cdm_field,
            coalesce(ancestors.descendant_concept_id, rules.concept_id) as concept_id
        from {{ ref('plausible_genders') }} as rules
        left join {{ tables.concept_ancestor }} as ancestors
            on
                rules.with_descendants = 1
                and rules.concept_id = ancestors.ancestor_concept_id

    )
{%- endmacro %}

{#- Checks that look a concept up: of each column's distinct concepts, not of its rows. -#}
{% macro concept_checks() -%}
    select
        checks.check_name,
        checks.cdm_table,
        checks.cdm_field,
        0 as concept_id,
        coalesce(sum(case
            when checks.check_name = 'isForeignKey'
                then case when concepts.concept_id is null then row_count end
            when used.concept_id = 0 or concepts.concept_id is null then 0
            when checks.check_name = 'fkDomain'
                then case when concepts.domain_id <> checks.parameter then row_count end
            when checks.check_name = 'fkClass'
                then case
                    when concepts.concept_class_id <> checks.parameter then row_count
                end
            when
                coalesce(concepts.standard_concept, '') <> 'S'
                or coalesce(concepts.invalid_reason, '') <> ''
                then row_count
        end), 0) as rows_violated,
        coalesce(sum(row_count), 0) as denominator
    from checks
    left join concept_counts as used
        on checks.cdm_table = used.cdm_table and checks.cdm_field = used.cdm_field
    left join concepts on used.concept_id = concepts.concept_id
    where
        checks.check_name in ('fkDomain', 'fkClass', 'isStandardValidConcept')
        or (checks.check_name = 'isForeignKey' and checks.other_table = 'concept')
    group by 1, 2, 3
{%- endmacro %}

{% macro unit_checks() -%}
    select
        checks.check_name,
        checks.cdm_table,
        checks.cdm_field,
        checks.concept_id,
        coalesce(sum(case
            when not list_contains(
                string_split(checks.parameter, ','), cast(unit_concept_id as varchar)
            ) then row_count
        end), 0) as rows_violated,
        coalesce(sum(row_count), 0) as denominator
    from checks
    left join units on checks.concept_id = units.concept_id
    where checks.check_name = 'plausibleUnitConceptIds'
    group by 1, 2, 3, 4
{%- endmacro %}

{% macro gender_checks() -%}
    select
        'plausibleGender' as check_name,
        gender_rules.cdm_table,
        gender_rules.cdm_field,
        gender_rules.rule_concept_id as concept_id,
        coalesce(sum(case
            when genders.gender_concept_id <> gender_rules.gender_concept_id
                then row_count
        end), 0) as rows_violated,
        coalesce(sum(row_count), 0) as denominator
    from gender_rules
    left join genders
        on
            gender_rules.concept_id = genders.concept_id
            and gender_rules.cdm_table = genders.cdm_table
    group by 2, 3, 4
{%- endmacro %}

{#- Passed or failed as the Dashboard says it: no threshold means not one row. -#}
{% macro quality_status(violated, denominator) -%}
    case
        when {{ denominator }} = 0 then 'not_applicable'
        when threshold = 0 and {{ violated }} > 0 then 'failed'
        when 100.0 * {{ violated }} > threshold * {{ denominator }} then 'failed'
        else 'passed'
    end
{%- endmacro %}

{#- Lower end of Wilson's score interval of a share (Wilson 1927), two-sided 99 %. -#}
{% macro wilson_lower(share, size, z=2.576) -%}
    (
        {{ share }} + {{ z * z / 2 }} / {{ size }}
        - {{ z }} * sqrt(
            {{ share }} * (1 - {{ share }}) / {{ size }}
            + {{ z * z / 4 }} / ({{ size }} * {{ size }})
        )
    ) / (1 + {{ z * z }} / {{ size }})
{%- endmacro %}
