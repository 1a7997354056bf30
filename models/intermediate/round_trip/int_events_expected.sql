-- One row per row of the source's event tables that the ledger calls encoded, or that
-- repeats one, straight from staging: what the round trip must bring back.
with

events as (

    select * from {{ ref('int_events_united') }}

),

persons as (

    select distinct person_id from {{ ref('stg_omop__person') }}

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

visits as (

    select distinct person_id, visit_occurrence_id
    from {{ ref('int_visits_checked') }}
    where reason is null

),

final as (

    select
        events.source_table,
        events.source_id,
        events.person_id,
        visits.visit_occurrence_id is not null as has_visit,
        visits.visit_occurrence_id,
        events.concept_id,
        events.event_date,
        case
            when
                cast(events.event_datetime as date) = events.event_date
                and events.event_datetime <> cast(events.event_date as timestamp)
                then cast(extract(hour from events.event_datetime) as int)
        end as hour,
        events.unit_concept_id,
        events.operator_concept_id,
        events.value_as_concept_id,
        events.days_supply
    from events
    inner join persons on events.person_id = persons.person_id
    left join spans on events.person_id = spans.person_id
    left join visits
        on
            events.person_id = visits.person_id
            and events.visit_occurrence_id = visits.visit_occurrence_id
    where
        events.event_date is not null
        {%- if var('start_date') %}
        and events.event_date >= cast('{{ var("start_date") }}' as date)
        {%- endif %}
        and coalesce(events.concept_id, 0) <> 0
        and (
            spans.person_id is null
            or events.event_date between spans.first_date and spans.last_date
        )

)

select * from final
