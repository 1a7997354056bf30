-- One row per check: the synthetic tables beside the source's, and a verdict.
with

checks as (

    select
        check_name,
        check_level,
        severity,
        cdm_table,
        coalesce(cdm_field, '') as cdm_field,
        threshold,
        concept_id
    from {{ ref('quality_checks') }}
    union all
    select
        'plausibleGender' as check_name,
        'CONCEPT' as check_level,
        'characterization' as severity,
        cdm_table,
        cdm_field,
        case with_descendants when 1 then 2 else 5 end as threshold,
        concept_id
    from {{ ref('plausible_genders') }}

),

joined as (

    select
        checks.*,
        coalesce(ours.rows_violated, 0) as rows_violated,
        coalesce(ours.denominator, 0) as denominator,
        coalesce(theirs.rows_violated, 0) as source_rows_violated,
        coalesce(theirs.denominator, 0) as source_denominator
    from checks
    left join {{ ref('synthetic_quality') }} as ours
        on
            checks.check_name = ours.check_name
            and checks.cdm_table = ours.cdm_table
            and checks.cdm_field = ours.cdm_field
            and checks.concept_id = ours.concept_id
    left join {{ ref('source_quality') }} as theirs
        on
            checks.check_name = theirs.check_name
            and checks.cdm_table = theirs.cdm_table
            and checks.cdm_field = theirs.cdm_field
            and checks.concept_id = theirs.concept_id

),

rated as (

    select
        *,
        {{ quality_status('rows_violated', 'denominator') }} as status,
        {{ quality_status('source_rows_violated', 'source_denominator') }}
            as source_status,
        rows_violated / nullif(denominator, 0) as rate,
        source_rows_violated / nullif(source_denominator, 0) as source_rate
    from joined

),

final as (

    select
        check_name,
        check_level,
        severity,
        cdm_table,
        cdm_field,
        concept_id,
        cast(threshold as double) as threshold,
        rows_violated,
        denominator,
        status,
        source_rows_violated,
        source_denominator,
        source_status,
        case
            when status <> 'failed' then status
            when severity = 'fatal' then 'failed'
            -- worse than the source, by more than a tenth of a per cent and more than
            -- chance: the lower end of Wilson's interval (99 %) lies above its rate
            when
                {{ wilson_lower('rate', 'denominator') }}
                <= coalesce(source_rate, 0) + 0.001
                then 'as_in_source'
            else 'failed'
        end as verdict
    from rated

)

select * from final
order by check_name, cdm_table, cdm_field, concept_id
