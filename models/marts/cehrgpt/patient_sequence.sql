-- One row per person with a visit: the columns that CEHR-GPT trains on.
{{ config(
    materialized='view',
    post_hook="{{ write_parquet(var('cehrgpt_folder')) }}",
) }}
-- depends_on: {{ ref('int_persons_started') }}
with

tokens as (

    select
        *,
        -- two values in turn, and 0 for the demographics
        case when visit_order = 0 then 0 else visit_order % 2 + 1 end as visit_segment,
        -- weeks since 1970
        case
            when visit_order = 0 then 0
            else cast(floor(epoch_time / 604800) as int)
        end as date_in_week
    from {{ ref('patient_tokens') }}

),

final as (

    select
        person_id as cohort_member_id,
        person_id,
        {{ collect('token', 'position') }} as concept_ids,
        {{ collect('visit_segment', 'position') }} as visit_segments,
        {{ collect('position', 'position') }} as orders,
        {{ collect('date_in_week', 'position') }} as dates,
        {{ collect('age', 'position') }} as ages,
        {{ collect('visit_concept_order', 'position') }} as visit_concept_orders,
        max(visit_order) as num_of_visits,
        count(*) as num_of_concepts,
        {{ collect('concept_value_mask', 'position') }} as concept_value_masks,
        {{ collect('number_as_value', 'position') }} as number_as_values,
        {{ collect('concept_as_value', 'position') }} as concept_as_values,
        {{ collect('is_numeric_type', 'position') }} as is_numeric_types,
        {{ collect('mlm_skip_value', 'position') }} as mlm_skip_values,
        {{ collect('priority', 'position') }} as priorities,
        {{ collect('visit_concept_id', 'position') }} as visit_concept_ids,
        {{ collect('visit_order', 'position') }} as visit_rank_orders,
        {{ collect('concept_order', 'position') }} as concept_orders,
        {{ collect('position', 'position') }} as record_ranks,
        {{ collect('unit', 'position') }} as units,
        {{ collect('epoch_time', 'position') }} as epoch_times,
        split,
        part
    from tokens
    group by person_id, split, part

)

select * from final
order by person_id
