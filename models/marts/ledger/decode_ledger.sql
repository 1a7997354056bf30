-- One row per outcome and target: every token of every sequence is in one row of
-- outcome `row` (it made a row of that table), `structure` (it dates, links or
-- describes one) or `left_out` (with the reason); `note` counts rows worth knowing.
with

sequences as (

    select * from {{ ref('int_sequences_checked') }}

),

tokens as (

    select
        kinds.makes,
        kinds.kind,
        vocabulary.source_table,
        summed.token_count
    from {{ ref('int_tokens_summed') }} as summed
    inner join {{ ref('stg_generated__vocabulary') }} as vocabulary
        on summed.token_id = vocabulary.token_id
    inner join {{ ref('kinds') }} as kinds on vocabulary.kind = kinds.kind

),

events as (

    select * from {{ ref('int_events_decoded') }}

),

visits as (

    select * from {{ ref('int_visits_decoded') }}

),

deaths as (

    select * from {{ ref('int_deaths_decoded') }}

),

notes as (

    select 'event_outside_its_visit' as target, position
    from events
    where is_outside_its_visit

    union all

    select 'event_after_death' as target, events.position
    from events
    inner join deaths on events.person_id = deaths.person_id
    where events.event_date > deaths.death_date

    union all

    select 'event_ends_before_it_starts' as target, position
    from events
    where end_date < event_date

    union all

    select 'visit_ends_before_it_starts' as target, position
    from visits
    where visit_end_date < visit_start_date

    union all

    select 'visit_starts_after_death' as target, visits.position
    from visits
    inner join deaths on visits.person_id = deaths.person_id
    where visits.visit_start_date > deaths.death_date

    union all

    -- of a pair of event and bin that training never saw, or too few persons had
    select 'number_unknown' as target, position
    from events
    where has_unknown_number

    union all

    select 'quantity_unknown' as target, position
    from events
    where has_unknown_quantity

    union all

    -- a value that the table of its event has no column for
    select 'value_without_a_column' as target, position
    from events
    where
        (
            source_table not in ('measurement', 'observation')
            and (value_bin is not null or value_as_concept_id is not null)
        )
        or (source_table <> 'measurement' and operator_concept_id is not null)
        or (source_table <> 'drug_exposure' and days_supply is not null)
        or (
            source_table in ('condition_occurrence', 'measurement', 'observation')
            and quantity_bin is not null
        )
        or (source_table in ('measurement', 'observation') and end_date is not null)

),

final as (

    select
        'left_out' as outcome,
        reason as target,
        cast(sum(coalesce(token_count, 0)) as bigint) as token_count,
        count(*) as row_count
    from sequences
    where reason is not null
    group by 1, 2

    union all

    select
        case when makes = 'structure' then 'structure' else 'row' end as outcome,
        case
            when makes = 'structure' then kind
            when makes = 'event' then source_table
            else makes
        end as target,
        cast(sum(token_count) as bigint) as token_count,
        cast(
            sum(case when makes = 'structure' then 0 else token_count end) as bigint
        ) as row_count
    from tokens
    group by makes, kind, source_table

    union all

    select 'note' as outcome, target, 0 as token_count, count(*) as row_count
    from notes
    group by 1, 2

)

select * from final
order by outcome, target
