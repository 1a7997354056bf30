-- One row per row of the source's event tables that the ledger calls encoded, or that
-- repeats one, as the options chose them: what the round trip must
-- bring back.
with

events as (

    select * from {{ ref('int_events_chosen') }}
    where reason is null

),

persons as (

    select distinct person_id from {{ ref('stg_omop__person') }}

),

spans as (

    select * from {{ ref('int_spans_chosen') }}

),

visits as (

    select distinct person_id, visit_occurrence_id
    from {{ ref('int_visits_expected') }}

),

fields as (

    select * from {{ ref('int_fields_pivoted') }}

),

event_tables as (

    select * from {{ ref('event_tables') }}

),

read as (

    select
        events.source_table,
        events.source_id,
        events.person_id,
        visits.visit_occurrence_id is not null as has_visit,
        visits.visit_occurrence_id,
        events.concept_id,
        events.source_concept_id,
        {{ coarse_date('events.event_date', 'anchors.anchor_date') }} as event_date,
        case
            when
                fields.has_hour
                and cast(events.event_datetime as date) = events.event_date
                and events.event_datetime <> cast(events.event_date as timestamp)
                then cast(extract(hour from events.event_datetime) as int)
        end as hour,
        case when fields.has_unit then events.unit_concept_id end as unit_concept_id,
        case
            when fields.has_number and {{ is_finite('events.value_as_number') }}
                then events.value_as_number
        end as value_as_number,
        case when fields.has_operator then events.operator_concept_id end
            as operator_concept_id,
        case when fields.has_value_concept then events.value_as_concept_id end
            as value_as_concept_id,
        case
            when fields.has_quantity and {{ is_finite('events.quantity') }}
                then events.quantity
        end as quantity,
        case when fields.has_days_supply then events.days_supply end as days_supply,
        case
            when
                fields.has_end
                and abs({{ days_between('events.event_date', 'events.end_date') }})
                <= {{ var('longest_days') }}
                then {{ coarse_date('events.end_date', 'anchors.anchor_date') }}
        end as end_date,
        event_tables.prefix
    from events
    cross join fields
    inner join event_tables on events.source_table = event_tables.source_table
    inner join persons on events.person_id = persons.person_id
    left join spans on events.person_id = spans.person_id
    {%- if var('att_type') != 'day' %}
    inner join {{ ref('int_persons_anchored') }} as anchors
        on events.person_id = anchors.person_id
    {%- endif %}
    left join visits
        on
            events.person_id = visits.person_id
            and events.visit_occurrence_id = visits.visit_occurrence_id
    where
        events.event_date is not null
        and (
            spans.person_id is null
            or events.event_date between spans.first_date and spans.last_date
        )

),

named as (

    select
        read.*,
        read.prefix
        || coalesce(codes.code, cast(read.concept_id as {{ dbt.type_string() }}))
        || coalesce(
            '@' || cast(read.unit_concept_id as {{ dbt.type_string() }}), ''
        ) as event_token
    from read
    left join {{ ref('int_source_codes') }} as codes
        on read.source_concept_id = codes.concept_id

),

bins as (

    select * from {{ ref('value_bins') }}

),

final as (

    select
        named.source_table,
        named.source_id,
        named.person_id,
        named.has_visit,
        named.visit_occurrence_id,
        named.concept_id,
        named.source_concept_id,
        named.event_date,
        named.hour,
        named.unit_concept_id,
        named.value_as_number,
        -- a number of a token that training has no number of is read as unknown
        numbers.bin is not null as has_number,
        numbers.bin as value_bin,
        named.operator_concept_id,
        named.value_as_concept_id,
        named.quantity,
        quantities.bin is not null as has_quantity,
        quantities.bin as quantity_bin,
        named.days_supply,
        named.end_date
    from named
    left join bins as numbers
        on
            named.event_token = numbers.event_token
            and numbers.field = 'number'
            and named.value_as_number >= coalesce(numbers.low, named.value_as_number)
            and (named.value_as_number < numbers.high or numbers.high is null)
    left join bins as quantities
        on
            named.event_token = quantities.event_token
            and quantities.field = 'quantity'
            and named.quantity >= coalesce(quantities.low, named.quantity)
            and (named.quantity < quantities.high or quantities.high is null)

)

select * from final
