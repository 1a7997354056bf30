-- One row per token of the language of this data set, with its meaning. The fixed
-- tokens come first, as the grammar has them; the others are those that any split has.
with

kinds as (

    select kinds.*
    from {{ ref('kinds') }} as kinds
    inner join {{ ref('int_fields_chosen') }} as fields on kinds.field = fields.field
    where fields.is_on = 1

),

persons as (

    select * from {{ ref('int_persons_started') }}

),

visits as (

    select * from {{ ref('int_visits_ordered') }}

),

events as (

    select * from {{ ref('int_events_ordered') }}

),

families as (

    select * from {{ ref('token_families') }}

),

-- a history that is cut starts its later parts with the year and the age of then; most
-- events and ends are of the year that their visit starts in
dates as (

    select person_id, visit_start_date as a_date from visits
    union all
    select person_id, visit_end_date as a_date from visits
    where extract(year from visit_end_date) <> extract(year from visit_start_date)
    union all
    select person_id, event_date as a_date from events
    where
        day_offset <> 0
        and extract(year from event_date)
        <> extract(year from {{ dbt.dateadd('day', '-day_offset', 'event_date') }})

),

person_years as (

    select start_year as a_year, year_of_birth from persons
    union
    select
        extract(year from dates.a_date) as a_year,
        persons.year_of_birth
    from dates
    inner join persons on dates.person_id = persons.person_id

),

meanings as (

    select
        'year' as kind,
        cast(a_year as bigint) as number,
        cast(null as bigint) as concept_id
    from person_years
    union
    select 'age', a_year - year_of_birth, null from person_years
    {%- for kind, column, table in [
        ('gender', 'gender_concept_id', 'persons'),
        ('race', 'race_concept_id', 'persons'),
        ('ethnicity', 'ethnicity_concept_id', 'persons'),
        ('visit', 'visit_concept_id', 'visits'),
        ('discharge', 'discharged_to_concept_id', 'visits'),
        ('operator', 'operator_concept_id', 'events'),
        ('value_concept', 'value_as_concept_id', 'events'),
    ] %}
        union all
        select distinct '{{ kind }}', cast(null as bigint), {{ column }}
        from {{ table }}
        where {{ column }} is not null
    {%- endfor %}
    {%- for kind, column in [
        ('hour', 'hour'),
        ('days_supply', 'days_supply'),
        ('number', 'value_bin'),
        ('quantity', 'quantity_bin'),
    ] %}
        union all
        select distinct '{{ kind }}', {{ column }}, cast(null as bigint)
        from events
        where {{ column }} is not null
    {%- endfor %}

),

united as (

    select
        token,
        kind,
        days,
        cast(null as bigint) as number,
        cast(null as {{ dbt.type_string() }}) as source_table,
        cast(null as bigint) as concept_id,
        cast(null as bigint) as unit_concept_id,
        cast(null as bigint) as source_concept_id
    from {{ ref('fixed_tokens') }}
    where scheme in ('all', '{{ var("att_type") }}')

    union all

    select
        families.prefix
        || cast(
            coalesce(meanings.number, meanings.concept_id) as {{ dbt.type_string() }}
        ),
        meanings.kind,
        0,
        meanings.number,
        null,
        meanings.concept_id,
        null,
        null
    from meanings
    inner join families on meanings.kind = families.kind
    where coalesce(meanings.number, meanings.concept_id) is not null

    union all

    select
        token,
        'event',
        0,
        null,
        source_table,
        concept_id,
        unit_concept_id,
        source_concept_id
    from {{ ref('int_event_tokens') }}

),

earlier as (

    {%- if has_before() %}
        select token, token_id from {{ before('int_vocabulary') }}
    {%- else %}
        select token, 0 as token_id from united
        where 1 = 0
    {%- endif %}

),

earlier_counts as (

    select count(*) as token_count from earlier

),

-- tokens keep the ids that they had; new ones come after, in the same order
numbered as (

    select
        cast(
            coalesce(
                earlier.token_id,
                row_number() over (
                    partition by earlier.token_id is null
                    order by
                        kinds.kind_order,
                        abs(united.days),
                        united.number,
                        united.source_table,
                        united.concept_id,
                        united.unit_concept_id nulls first,
                        united.source_concept_id nulls first
                ) - 1 + earlier_counts.token_count
            ) as int
        ) as token_id,
        united.token,
        united.kind,
        cast(united.days as int) as days,
        united.number,
        united.source_table,
        united.concept_id,
        united.unit_concept_id,
        united.source_concept_id
    from united
    inner join kinds on united.kind = kinds.kind
    left join earlier on united.token = earlier.token
    cross join earlier_counts

)

{%- if has_before() %},

-- what no record has any more stays a word of the language
united_with_lost as (

    select * from numbered
    union all by name
    select lost.*
    from {{ before('int_vocabulary') }} as lost
    where lost.token not in (select token from numbered)

)

select * from united_with_lost
{%- else %}

    select * from numbered
{%- endif %}
