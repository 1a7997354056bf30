-- One row per step of a history with its tokens, in their order: 21 places, filled or
-- NULL. What closes the visit before and leads here has the first seven, then come what
-- opens a history, a visit or its end, and an event with its values.
{{ config(materialized='view') }}
-- depends_on: {{ ref('int_event_tokens') }}
-- depends_on: {{ ref('int_days_spelled') }}
{%- set dies = 'steps.step = 2 and steps.visit_start_date is not null' %}
with

steps as (

    select * from {{ ref('int_histories_ordered') }}

),

persons as (

    select * from {{ ref('int_persons_started') }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

event_tokens as (

    {{ tokens_of_events() }}

),

spelled as (

    {{ tokens_of_days() }}

),

-- kinds that have one token
singles as (

    select
        max(case when kind = 'bos' then token_id end) as bos,
        max(case when kind = 'eos' then token_id end) as eos,
        max(case when kind = 'death' then token_id end) as death,
        max(case when kind = 'no_visit' then token_id end) as no_visit,
        max(case when kind = 'year_unknown' then token_id end) as year_unknown,
        max(case when kind = 'age_unknown' then token_id end) as age_unknown,
        max(case when kind = 'number_unknown' then token_id end) as number_unknown,
        max(case when kind = 'quantity_unknown' then token_id end) as quantity_unknown
    from vocabulary

),

opened_histories as (

    select
        persons.person_id,
        persons.split,
        singles.bos as bos_id,
        case
            when persons.start_year is null then singles.year_unknown
            else coalesce(years.token_id, -1)
        end as year_id,
        case
            when persons.age_years is null then singles.age_unknown
            else coalesce(ages.token_id, -1)
        end as age_id,
        coalesce(genders.token_id, -1) as gender_id,
        coalesce(races.token_id, -1) as race_id,
        coalesce(ethnicities.token_id, -1) as ethnicity_id
    from persons
    cross join singles
    left join vocabulary as years
        on persons.start_year = years.number and years.kind = 'year'
    left join vocabulary as ages
        on persons.age_years = ages.number and ages.kind = 'age'
    left join vocabulary as genders
        on persons.gender_concept_id = genders.concept_id and genders.kind = 'gender'
    left join vocabulary as races
        on persons.race_concept_id = races.concept_id and races.kind = 'race'
    left join vocabulary as ethnicities
        on
            persons.ethnicity_concept_id = ethnicities.concept_id
            and ethnicities.kind = 'ethnicity'

),

placed as (

    select
        steps.part,
        steps.person_id,
        opened.split,
        steps.step_order,
        {{- run(spelled_days('steps.closing_days <> 0', 'closings') + [
            token_or_missing(
                'steps.closing_discharged_to_concept_id', 'discharges.token_id'
            ),
        ] + spelled_days('steps.opens_visit or ' ~ dies, 'gaps') + [
            'case when steps.step = 0 then opened.bos_id'
            ~ ' when ' ~ dies ~ ' then singles.death'
            ~ ' when steps.opens_visit and steps.is_loose then singles.no_visit'
            ~ ' when steps.opens_visit'
            ~ ' then coalesce(visit_types.token_id, -1) end',
        ] + [
            'case steps.step when 0 then opened.year_id when 2 then singles.eos else '
            ~ spelled_days('steps.move_days <> 0', 'moves')[0] ~ ' end',
            'case when steps.step = 0 then opened.age_id else '
            ~ spelled_days('steps.move_days <> 0', 'moves')[1] ~ ' end',
            'case when steps.step = 0 then opened.gender_id else '
            ~ spelled_days('steps.move_days <> 0', 'moves')[2] ~ ' end',
            'case when steps.step = 0 then opened.race_id'
            ~ ' when steps.is_new_hour then coalesce(hours.token_id, -1) end',
            'case when steps.step = 0 then opened.ethnicity_id'
            ~ ' when steps.event_date is not null'
            ~ ' then coalesce(event_tokens.token_id, -1) end',
            'case when steps.value_as_number is not null and steps.value_bin is null'
            ~ ' then singles.number_unknown else '
            ~ token_or_missing('steps.value_bin', 'numbers.token_id') ~ ' end',
            token_or_missing('steps.operator_concept_id', 'operators.token_id'),
            token_or_missing('steps.value_as_concept_id', 'value_concepts.token_id'),
            'case when steps.quantity is not null and steps.quantity_bin is null'
            ~ ' then singles.quantity_unknown else '
            ~ token_or_missing('steps.quantity_bin', 'quantities.token_id') ~ ' end',
            token_or_missing('steps.days_supply', 'supplies.token_id'),
        ] + spelled_days('steps.end_date is not null', 'ends')) }}
    from steps
    cross join singles
    left join opened_histories as opened on steps.person_id = opened.person_id
    left join spelled as closings
        on steps.closing_days = closings.days and closings.role = 'move'
    left join vocabulary as discharges
        on
            steps.closing_discharged_to_concept_id = discharges.concept_id
            and discharges.kind = 'discharge'
    left join spelled as gaps on steps.gap_days = gaps.days and gaps.role = 'gap'
    left join vocabulary as visit_types
        on
            steps.visit_concept_id = visit_types.concept_id
            and visit_types.kind = 'visit'
    left join spelled as moves on steps.move_days = moves.days and moves.role = 'move'
    left join vocabulary as hours on steps.hour = hours.number and hours.kind = 'hour'
    left join event_tokens on steps.token_order = event_tokens.token_order
    left join vocabulary as numbers
        on steps.value_bin = numbers.number and numbers.kind = 'number'
    left join vocabulary as operators
        on
            steps.operator_concept_id = operators.concept_id
            and operators.kind = 'operator'
    left join vocabulary as value_concepts
        on
            steps.value_as_concept_id = value_concepts.concept_id
            and value_concepts.kind = 'value_concept'
    left join vocabulary as quantities
        on steps.quantity_bin = quantities.number and quantities.kind = 'quantity'
    left join vocabulary as supplies
        on steps.days_supply = supplies.number and supplies.kind = 'days_supply'
    left join spelled as ends
        on
            {{ days_between('steps.event_date', 'steps.end_date') }} = ends.days
            and ends.role = 'end'

)

select * from placed
