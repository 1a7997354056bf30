-- One row per run of adjoining tokens of a sequence: the demographics, what closes a
-- visit and opens the next, an event with its values, what closes the last visit and
-- the history. A run has thirteen places, filled or NULL; first_position is where the
-- run starts. The rows lie in the order of the files.
{{ config(
    pre_hook='{{ start_batches() }}',
    post_hook='{{ add_batches() }}'
) }}
{%- set last = 2147483647 %}

with

persons as (

    select * from {{ ref('int_persons_started') }}
    where {{ is_new('person_id') }} and {{ is_in_batch('person_id') }}

),

visits as (

    select * from {{ ref('int_visits_ordered') }}
    where {{ is_new('person_id') }} and {{ is_in_batch('person_id') }}

),

events as (

    select * from {{ ref('int_events_ordered') }}
    where {{ is_new('person_id') }} and {{ is_in_batch('person_id') }}

),

vocabulary as (

    select * from {{ ref('int_vocabulary') }}

),

event_tokens as (

    select event_tokens.token_order, vocabulary.token_id
    from {{ ref('int_event_tokens') }} as event_tokens
    inner join vocabulary on event_tokens.token = vocabulary.token

),

spelled as (

    select
        spelled.role,
        spelled.days,
        tokens_1.token_id as token_id_1,
        tokens_2.token_id as token_id_2,
        tokens_3.token_id as token_id_3
    from {{ ref('int_days_spelled') }} as spelled
    inner join vocabulary as tokens_1 on spelled.token_1 = tokens_1.token
    left join vocabulary as tokens_2 on spelled.token_2 = tokens_2.token
    left join vocabulary as tokens_3 on spelled.token_3 = tokens_3.token

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
        0 as visit_order,
        0 as event_order,
        {{- run([
            'singles.bos',
            'case when persons.start_year is null then singles.year_unknown'
            ~ ' else coalesce(years.token_id, -1) end',
            'case when persons.age_years is null then singles.age_unknown'
            ~ ' else coalesce(ages.token_id, -1) end',
            'coalesce(genders.token_id, -1)',
            'coalesce(races.token_id, -1)',
            'coalesce(ethnicities.token_id, -1)',
        ]) }}
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

-- the last move of a visit leads from its last event to its end, forward or back; the
-- events of a loose day leave the cursor where it is
last_events as (

    select person_id, visit_order, max(day_offset) as day_offset
    from events
    group by 1, 2

),

turns as (

    select
        visits.person_id,
        visits.visit_order,
        visits.gap_days,
        visits.is_loose,
        visits.visit_concept_id,
        visits.previous_discharged_to_concept_id,
        visits.previous_days - coalesce(last_events.day_offset, 0) as closing_days
    from visits
    left join last_events
        on
            visits.person_id = last_events.person_id
            and visits.visit_order - 1 = last_events.visit_order

),

opened_visits as (

    select
        turns.person_id,
        turns.visit_order,
        0 as event_order,
        {{- run(spelled_days('turns.closing_days <> 0', 'moves') + [
            token_or_missing(
                'turns.previous_discharged_to_concept_id', 'discharges.token_id'
            ),
        ] + spelled_days('true', 'gaps') + [
            'case when turns.is_loose then singles.no_visit'
            ~ ' else coalesce(visit_types.token_id, -1) end',
        ]) }}
    from turns
    cross join singles
    left join spelled as moves
        on turns.closing_days = moves.days and moves.role = 'move'
    left join vocabulary as discharges
        on
            turns.previous_discharged_to_concept_id = discharges.concept_id
            and discharges.kind = 'discharge'
    left join spelled as gaps on turns.gap_days = gaps.days and gaps.role = 'gap'
    left join vocabulary as visit_types
        on
            turns.visit_concept_id = visit_types.concept_id
            and visit_types.kind = 'visit'

),

event_runs as (

    select
        events.person_id,
        events.visit_order,
        events.event_order,
        {{- run(spelled_days('events.move_days <> 0', 'moves') + [
            'case when events.is_new_hour then coalesce(hours.token_id, -1) end',
            'coalesce(event_tokens.token_id, -1)',
            'case when events.value_as_number is not null and events.value_bin is null'
            ~ ' then singles.number_unknown else '
            ~ token_or_missing('events.value_bin', 'numbers.token_id') ~ ' end',
            token_or_missing('events.operator_concept_id', 'operators.token_id'),
            token_or_missing('events.value_as_concept_id', 'value_concepts.token_id'),
            'case when events.quantity is not null and events.quantity_bin is null'
            ~ ' then singles.quantity_unknown else '
            ~ token_or_missing('events.quantity_bin', 'quantities.token_id') ~ ' end',
            token_or_missing('events.days_supply', 'supplies.token_id'),
        ] + spelled_days('events.end_days is not null', 'ends')) }}
    from events
    cross join singles
    left join event_tokens on events.token_order = event_tokens.token_order
    left join spelled as moves on events.move_days = moves.days and moves.role = 'move'
    left join vocabulary as hours on events.hour = hours.number and hours.kind = 'hour'
    left join vocabulary as numbers
        on events.value_bin = numbers.number and numbers.kind = 'number'
    left join vocabulary as operators
        on
            events.operator_concept_id = operators.concept_id
            and operators.kind = 'operator'
    left join vocabulary as value_concepts
        on
            events.value_as_concept_id = value_concepts.concept_id
            and value_concepts.kind = 'value_concept'
    left join vocabulary as quantities
        on events.quantity_bin = quantities.number and quantities.kind = 'quantity'
    left join vocabulary as supplies
        on events.days_supply = supplies.number and supplies.kind = 'days_supply'
    left join spelled as ends on events.end_days = ends.days and ends.role = 'end'

),

last_turns as (

    select
        persons.person_id,
        persons.death_date,
        persons.death_gap_days,
        visits.discharged_to_concept_id,
        {{ days_between('visits.visit_start_date', 'visits.visit_end_date') }}
        - coalesce(last_events.day_offset, 0) as closing_days
    from persons
    left join visits
        on
            persons.person_id = visits.person_id
            and persons.visit_count = visits.visit_order
    left join last_events
        on
            persons.person_id = last_events.person_id
            and persons.visit_count = last_events.visit_order

),

closed_histories as (

    select
        last_turns.person_id,
        {{ last }} as visit_order,
        0 as event_order,
        {{- run(spelled_days('last_turns.closing_days <> 0', 'moves') + [
            token_or_missing(
                'last_turns.discharged_to_concept_id', 'discharges.token_id'
            ),
        ] + spelled_days('last_turns.death_date is not null', 'gaps') + [
            'case when last_turns.death_date is not null then singles.death end',
            'singles.eos',
        ]) }}
    from last_turns
    cross join singles
    left join spelled as moves
        on last_turns.closing_days = moves.days and moves.role = 'move'
    left join vocabulary as discharges
        on
            last_turns.discharged_to_concept_id = discharges.concept_id
            and discharges.kind = 'discharge'
    left join spelled as gaps
        on last_turns.death_gap_days = gaps.days and gaps.role = 'gap'

),

united as (

    select * from opened_histories
    union all
    select * from opened_visits
    union all
    select * from event_runs
    union all
    select * from closed_histories

),

-- rows are sorted, so they are kept narrow
runs as (

    select
        persons.part,
        {{ split_order('persons.split') }} as split_order,
        united.*,
        cast({{ run_length() }} as tinyint) as token_count
    from united
    inner join persons on united.person_id = persons.person_id
    {%- if has_before() %}

        union all by name
        select
            persons.part,
            {{ split_order('persons.split') }} as split_order,
            earlier.* exclude (part, split, first_position),
            earlier.first_position - 1 as visit_order,
            0 as event_order
        from {{ before('int_tokens_placed') }} as earlier
        inner join {{ ref('int_persons_kept') }} as kept
            on earlier.person_id = kept.person_id
        inner join {{ ref('int_persons_started') }} as persons
            on earlier.person_id = persons.person_id
        where {{ is_in_batch('earlier.person_id') }}
    {%- endif %}

),

sorted as (

    select * from runs
    order by part, person_id, visit_order, event_order

),

totalled as (

    select
        *,
        {{ running('sum(token_count)') }} - token_count as tokens_before -- noqa: PRS
    from sorted

),

openings as (

    select
        *,
        case when visit_order = 0 then tokens_before end as opening_tokens_before
    from totalled

),

started as (

    select
        *,
        -- where the tokens of the person start
        {{ running('max(opening_tokens_before)') }} as tokens_before_person -- noqa: PRS
    from openings

),

final as (

    select
        part,
        person_id,
        {{ split_of('split_order') }} as split,
        cast(tokens_before - tokens_before_person + 1 as int) as first_position,
        cast(token_count as int) as token_count,
        {{ run_places() | join(',\n        ') }}
    from started

)

select * from final
